"""sanawm-env: a Gymnasium environment whose physics is a learned world model."""
