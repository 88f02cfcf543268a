"""`sanawm replay`: predict a recorded episode again."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from sanawm_env.cli.output import progress, say

if TYPE_CHECKING:
    from sanawm_env.recording.episode import RecordedEpisode


@dataclass(frozen=True)
class Replay:
    """Predict an episode again from its meta.json, and write it anew or compare it."""

    episode: tyro.conf.Positional[Path]
    """Folder of the episode, of a dataset or a rollout."""
    verify: bool = False
    """Compare all files byte by byte with the episode, and keep nothing."""
    out: Path = Path("runs/replay")
    """Folder for the new episode."""
    world: str | None = None
    """Name or folder of the world, if it is elsewhere now; None as recorded."""
    device: str | None = None
    """Device of torch; None for the kind that the episode was recorded on."""

    def run(self) -> None:
        """Predict the episode again. ValueError where a compared file differs, and as `RecordedEpisode.replay`."""
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
            raise ValueError(f"{self.episode} is not the same when predicted again: {'; '.join(found)}.")
        say(f"{self.episode} is the same when predicted again: every file, byte for byte.")

    def imagine(self, episode: "RecordedEpisode", out: Path) -> None:
        """Predict the episode into the folder `out`, with a progress bar."""
        with progress("predicting", "chunks", transient=True) as bar:
            for _ in bar.track(episode.replay(out, self.world, self.device), total=episode.chunks):
                pass
