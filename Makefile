# What CI runs, and the jobs that make what is in the repository. `make check` needs '.[test]'.
.PHONY: check test lint types teacher children family evidence cards

check: lint types test

lint:
	ruff check .
	ruff format --check .
	lint-imports --no-cache

types:
	mypy

test:
	python -m pytest -n 2

# The embedded teacher again, from text, a good hour on two cores:
# make teacher TEXT=books-train.jsonl.gz HELD_OUT=books-valid.jsonl.gz
# What is there already is left: an interrupted make goes on.
teacher: tiny-again

tiny-first:
	minitron train $@ --recipe minitron/recipes/tiny.yaml --corpus $(TEXT)

tiny-again: | tiny-first
	minitron train $@ --recipe minitron/recipes/tiny-continued.yaml --corpus $(TEXT)
	minitron evaluate $@ --corpus $(HELD_OUT) --record

# The children again, about 40 minutes on two cores: make children TEXT=... HELD_OUT=...
children: tiny-quarter

tiny-half-pruned:
	minitron prune tiny $@ --recipe minitron/recipes/tiny-half-prune.yaml --corpus $(TEXT)

tiny-quarter-pruned: | tiny-half
	minitron prune tiny-half $@ --recipe minitron/recipes/tiny-quarter-prune.yaml --corpus $(TEXT)

tiny-half tiny-quarter: %: | %-pruned
	minitron distill $@-pruned $@ --teacher tiny --recipe minitron/recipes/$@-distill.yaml --corpus $(TEXT)
	minitron evaluate $@ --corpus $(HELD_OUT) --record

# All of it: teacher, children, the papers' tables and the page: a night on two cores. A run that has
# its result file is not run again: make family TEXT=... HELD_OUT=... OTHER=plays.txt
family: teacher children
	python benchmarks/family.py --corpus $(TEXT) --held-out $(HELD_OUT) --other $(OTHER) --work runs
	python benchmarks/zero_shot.py --corpus $(TEXT) --held-out $(HELD_OUT)
	python benchmarks/family_page.py

# README's table again: make evidence TEXT=books.jsonl.gz HELD_OUT=held-out.jsonl.gz
evidence:
	python benchmarks/importance_against_random.py --corpus $(TEXT) --held-out $(HELD_OUT)

# model_cards/ and the zoo's cards again, from minitron/records/.
cards:
	python -m minitron.records.published_cards model_cards
