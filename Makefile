# What CI runs, and the jobs that make what is in the repository. `make check` needs '.[test]'.
.PHONY: check test lint types teacher evidence cards

check: lint types test

lint:
	ruff check .
	ruff format --check .

# Over the packages as they are installed: conversion/ is minitron.conversion.
types:
	rm -rf build/types && mkdir -p build/types
	cp -r minitron modeling_nemotron build/types
	cp -r conversion build/types/minitron/conversion
	cp -r space build/types/minitron/space
	cd build/types && mypy --config-file ../../setup.cfg

test:
	python -m pytest -n 2

# The embedded teacher again, from text, a good hour on two cores:
# make teacher TEXT=books-train.jsonl.gz HELD_OUT=books-valid.jsonl.gz
teacher:
	minitron train tiny-first --recipe minitron/recipes/tiny.yaml --corpus $(TEXT)
	minitron train tiny-again --recipe minitron/recipes/tiny-continued.yaml --corpus $(TEXT)
	minitron evaluate tiny-again --corpus $(HELD_OUT) --record

# README's table again: make evidence TEXT=books.jsonl.gz HELD_OUT=held-out.jsonl.gz
evidence:
	python benchmarks/importance_against_random.py --corpus $(TEXT) --held-out $(HELD_OUT)

# model_cards/ and the zoo's cards again, from minitron/cards/.
cards:
	python -m minitron.cards.family model_cards
