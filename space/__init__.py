"""The Space: the models in a browser. `page` lays it out, `app.py` serves it.

`tabs` is what a visitor sees, `jobs` what is computed, `ui` how it looks.
"""
