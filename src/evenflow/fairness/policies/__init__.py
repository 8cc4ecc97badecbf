"""The policies: each decides who is served next, and what service it charges."""
