"""`sanawm replay`: an episode predicted again."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from sanawm_env.cli.output import progress, say

if TYPE_CHECKING:
    from sanawm_env.recording.episode import RecordedEpisode


@dataclass(frozen=True)
class Replay:
    """Predict an episode again from what its meta.json says."""

    episode: tyro.conf.Positional[Path]
    """Its folder, of a dataset or a rollout."""
    verify: bool = False
    """Compare every byte to the episode, and keep nothing."""
    out: Path = Path("runs/replay")
    """Folder for the new one."""
    world: str | None = None
    """The world it was recorded in, if that is elsewhere by now."""
    device: str | None = None
    """None: the kind it was recorded on."""

    def run(self) -> None:
        """Write the episode anew, or compare it to what it was. Raises ValueError where it has changed."""
        from sanawm_env.recording.episode import FILES, EpisodeWriter, RecordedEpisode, differences
        from sanawm_env.system.saving import Scratch, check_apart

        episode = RecordedEpisode.open(self.episode)
        if not self.verify:
            read = [episode.folder / name for name in FILES]
            source = episode.meta.get("source")
            check_apart([self.out / name for name in EpisodeWriter.names], [*read, source and str(source)])
            self.imagine(episode, self.out)
            say(f"episode {self.out}")
            return
        with Scratch("sanawm-replay-") as folder:
            self.imagine(episode, folder)
            found = differences(episode, RecordedEpisode.open(folder))
        if found:
            raise ValueError(f"{self.episode} comes out otherwise: {'; '.join(found)}.")
        say(f"{self.episode} comes out the same: every file, byte for byte.")

    def imagine(self, episode: "RecordedEpisode", out: Path) -> None:
        with progress("imagining", "chunks", transient=True) as bar:
            for _ in bar.track(episode.replay(out, self.world, self.device), total=episode.chunks):
                pass
