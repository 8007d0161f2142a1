"""A client of the Model Context Protocol, in its revision of 2026-07-28 and in those before it: programs on this machine and
servers on the web whose tools models call. None of them is trusted, and none costs more than the calls that it is given."""
