"""The number under which a manager commands: clients refuse any below the highest that they have heard.

It has to grow even where the database that counted it is lost, or every client would refuse the new one for ever.
"""


def next_term(persisted: int, unix_s: int) -> int:
    """Return the term of a manager that begins to lead: above every earlier one, and not below the clock."""
    return max(persisted + 1, unix_s)


def start_of(term: int, unix_ms: int) -> int:
    """Return when a leader's instance says that it began, ms: a higher term is newer by any clock, else the clock says.

    Two that share no database may begin in one second, under one term: the later is the newer.
    """
    return term * 1000 + unix_ms % 1000
