# `make check` runs most of CI; it needs '.[test]'. The other targets make files of the repository.
.PHONY: check test lint types teacher children family evidence cards

check: lint types test

lint:
	ruff check .
	ruff format --check .
	lint-imports --no-cache
	python .ci/plain_words.py minitron conversion space modeling_nemotron tests benchmarks

types:
	mypy

test:
	python -m pytest -n 2

# Train the embedded teacher from text (a good hour on two cores):
# make teacher TEXT=books-train.jsonl.gz HELD_OUT=books-valid.jsonl.gz
# Existing folders are kept, so an interrupted make continues.
teacher: tiny-again

tiny-first:
	minitron train $@ --recipe minitron/recipes/tiny.yaml --corpus $(TEXT)

tiny-again: | tiny-first
	minitron train $@ --recipe minitron/recipes/tiny-continued.yaml --corpus $(TEXT)
	minitron evaluate $@ --corpus $(HELD_OUT) --record

# Prune and distill the children (40 minutes on two cores): make children TEXT=... HELD_OUT=...
children: tiny-quarter

tiny-half-pruned:
	minitron prune tiny $@ --recipe minitron/recipes/tiny-half-prune.yaml --corpus $(TEXT)

tiny-quarter-pruned: | tiny-half
	minitron prune ./tiny-half $@ --recipe minitron/recipes/tiny-quarter-prune.yaml --corpus $(TEXT)

tiny-half tiny-quarter: %: | %-pruned
	minitron distill $@-pruned ./$@ --teacher tiny --recipe minitron/recipes/$@-distill.yaml --corpus $(TEXT)
	minitron evaluate $@ --corpus $(HELD_OUT) --record

# Make teacher, children, the papers' tables and docs/family.md (a night on two cores). Runs with a
# result file are not repeated: make family TEXT=... HELD_OUT=... OTHER=plays.txt
family: teacher children
	python benchmarks/family.py --corpus $(TEXT) --held-out $(HELD_OUT) --other $(OTHER) --work runs
	python benchmarks/zero_shot.py --corpus $(TEXT) --held-out $(HELD_OUT)
	python benchmarks/family_page.py

# Measure README's table of importance: make evidence TEXT=books.jsonl.gz HELD_OUT=held-out.jsonl.gz
evidence:
	python benchmarks/importance_against_random.py --corpus $(TEXT) --held-out $(HELD_OUT)

# Render model_cards/ and the cards of the embedded models from minitron/records/.
cards:
	python -m minitron.records.published_cards model_cards
