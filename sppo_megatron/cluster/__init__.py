"""Many ranks as one program: consensus, exit codes, failure reports, rendezvous, helper processes, servers."""
