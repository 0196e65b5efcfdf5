// A prompt as its conversation, turn by turn; the text that the model read can be opened below it.

function promptText(sample) {
  const text = element("pre", {}, sample.prompt ?? "–");
  if (!sample.messages) return [element("h4", {}, "Prompt"), text];
  return [element("h4", {}, "Conversation"),
    element("ol", {class: "conversation"}, sample.messages.map(({role, text: content}) => element("li", {},
      element("span", {class: "role"}, role ?? "–"), element("pre", {}, content ?? "–")))),
    element("details", {}, element("summary", {class: "note"}, "As the model read it"), text)];
}
