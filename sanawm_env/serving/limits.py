"""Limits of a server. They are also options of `sanawm serve`, so this module imports nothing heavy."""

from dataclasses import dataclass

from sanawm_env.system.files import check_count, check_number

GB, MB = 10**9, 10**6


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """How much clients may use."""

    sessions: int = 64
    """Sessions of each replica. A new one replaces the session that has been without a connection for longest."""
    episodes: int = 4096
    """Episodes of one client, snapshots included."""
    batch: int = 64
    """Episodes in one batch."""
    state_gb: float = 8.0
    """GB of all clients' episodes. Beyond it, clients that hold more than an equal share are refused."""
    goal_chunks: int = 16
    """Steps to a goal that a client asks for. The way there is predicted before anybody else's next step."""
    message_mb: float = 16.0
    """Largest message of a client, in MB."""
    idle_minutes: float = 30.0
    """Minutes without a request after which a session is deleted."""

    def check(self) -> None:
        """Raise ValueError for numbers out of range."""
        for name in ("sessions", "episodes", "batch", "goal_chunks"):
            check_count(name, getattr(self, name), 1, 2**20)
        for name in ("state_gb", "message_mb", "idle_minutes"):
            check_number(name, getattr(self, name), 1e-3, 1e6)
