"""The Space: the family in a browser. `page` puts it together, `app.py` serves it.

Knows what a visitor may ask and how answers look; what is done is minitron's public verbs.
"""
