"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: a missing file, a field of the wrong kind, a batch the mesh cannot divide.

    The message is one line that names the field or file, the value found, and what would work. `main`
    prints it as `error: ...` and exits with status 2, without a traceback.
    """
