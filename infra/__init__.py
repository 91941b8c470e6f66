"""What Corrigenda runs on: the embedded stack, the images and the deployed profile.

`local` is the only package that others import; nothing here imports anything of ours.
"""
