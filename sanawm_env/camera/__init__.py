"""Camera control: motions become poses, and poses become what the network reads.

`dsl` turns keys into poses, `twist` body twists into poses. `trajectory` reads, checks and resamples poses, `formats`
reads files of other programs. `presets` has speeds, limits and action tables, `intrinsics` intrinsics and crops, `rays`
the conditioning tensors (this one needs torch), `overlay` the keys drawn on a video. Poses are camera-to-world 4x4 in
metres with OpenCV axes: x right, y down, z forward.
"""
