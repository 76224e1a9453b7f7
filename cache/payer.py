"""Who pays for a teacher call: the owner of the key that asked, and the run it asked under."""

from typing import NamedTuple

LOCAL_OWNER = "local"
"""Who asks without a key: `teacher-server fill`, and requests to a server that takes them."""


class Payer(NamedTuple):
    """Both are counted, and both may be bounded."""

    owner: str
    run: str
