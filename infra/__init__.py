"""What Corrigenda runs on: the embedded stack, the images and the deployed profile. Knows nothing of edits."""
