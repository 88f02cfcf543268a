"""What clients may take of a server; the command has these as its options, so nothing heavy is imported."""

from dataclasses import dataclass

from sanawm_env.system.files import check_count, check_number

GB, MB = 10**9, 10**6


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What clients may take."""

    sessions: int = 64
    """Clients at once, of each replica. The one that has been longest without a connection makes room for another."""
    episodes: int = 4096
    """Episodes, snapshots included, that a client keeps at once."""
    batch: int = 64
    """Episodes that step at once."""
    state_gb: float = 8.0
    """Of all clients' episodes together. Beyond it those are refused that hold more than their equal part."""
    goal_chunks: int = 16
    """Steps to a goal that a client asks for: the way there is imagined before anybody else's next step."""
    message_mb: float = 16.0
    """The most that a client sends at once."""
    idle_minutes: float = 30.0
    """After which a client without a word is forgotten."""

    def check(self) -> None:
        """ValueError for numbers out of range."""
        for name in ("sessions", "episodes", "batch", "goal_chunks"):
            check_count(name, getattr(self, name), 1, 2**20)
        for name in ("state_gb", "message_mb", "idle_minutes"):
            check_number(name, getattr(self, name), 1e-3, 1e6)
