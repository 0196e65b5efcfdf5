"""Sums of products that remember their factors: what is printed as the arithmetic is what was computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

Factors = tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Term:
    """A product, divided by the divisors, if any. factors, divisors: (number, what it counts), in printing order."""

    what: str
    factors: Factors
    divisors: Factors = ()

    @property
    def value(self) -> float:
        """An integer if all factors are and nothing divides."""
        product = math.prod(number for number, _ in self.factors)
        return product / math.prod(number for number, _ in self.divisors) if self.divisors else product

    def times(self, **factors: float) -> Term:
        """The product with more factors before the others."""
        return replace(self, factors=_named(factors) + self.factors)

    def over(self, **divisors: float) -> Term:
        """The quotient; a divisor of 1 is left out."""
        return replace(self, divisors=self.divisors + tuple(part for part in _named(divisors) if part[0] != 1))

    def __str__(self) -> str:
        text = " × ".join(_counted(*part) for part in self.factors)
        return text + "".join(f" ÷ {_counted(*part)}" for part in self.divisors)


def term(what: str, **factors: float) -> Term:
    """A product of named factors: `term("norm inputs", tokens=8192, hidden=4096, bytes=2)`."""
    return Term(what, _named(factors))


@dataclass(frozen=True)
class Part:
    """A named sum of terms. basis: the formula's source, or what is assumed."""

    name: str
    terms: tuple[Term, ...]
    basis: str = ""

    @property
    def value(self) -> float:
        return sum(term.value for term in self.terms)


def _named(factors: dict[str, float]) -> Factors:
    return tuple((number, name.replace("_", " ")) for name, number in factors.items())


def _counted(number: float, what: str) -> str:
    if isinstance(number, int) or (number == int(number) and abs(number) < 1e9):
        return f"{int(number):,} {what}"
    return f"{number:.4g} {what}"
