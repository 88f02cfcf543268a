"""The ray-traced truth as a world: places that the renderer knows, and what a camera in them sees."""
