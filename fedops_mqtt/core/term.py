"""The number under which a manager commands: clients refuse any below the highest that they have heard.

It has to grow even where the database that counted it is lost, or every client would refuse the new one for ever.
"""


def next_term(persisted: int, unix_s: int) -> int:
    """Return the term of a manager that begins to lead: above every earlier one, and not below the clock."""
    return max(persisted + 1, unix_s)
