"""`Snapshot` by the name that Gymnasium's users import it by; it is defined in `sanawm_env.simulation.episode`."""

from sanawm_env.simulation.episode import Snapshot

__all__ = ["Snapshot"]
