"""How long and how large things on the line may be; the server says them to its clients at join. Imports no flwr."""

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LineLimits:
    """Limits in seconds (`_s`) and bytes; each is a setting of the FL server."""

    join_s: float = 120.0
    """Fewer clients than the run needs for longer than this ends the run."""
    round_s: float = 3600.0
    """One message is answered within this, whatever the strategy asks for; a client over it is dropped as failed."""
    run_s: float = 24 * 3600.0
    rejoin_s: float = 120.0
    """How long a client whose connection broke is waited for where nobody else can come in its place."""
    ping_s: float = 5.0
    """A vanished host is noticed within three of these."""
    poll_s: float = 25.0
    """Longest wait of one `next`; below the 30 to 60 s after which proxies cut silent requests."""
    stall_s: float = 60.0
    """A transfer that moves nothing for this long counts as broken."""
    max_message_bytes: int = 4 * 1024 * MIB

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"line limit {name} must be above 0, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LineCompression:
    """zstd for arrays of at least `threshold_bytes`, where a sample of them shrinks; trained weights rarely do."""

    level: int = 3
    threshold_bytes: int = 64 * 1024
