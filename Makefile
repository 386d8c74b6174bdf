# Each target does its own set-up, and is quick the second time. Python 3.11 to 3.14 and make must be installed. A
# target installs other missing programs with apt (as root or with sudo), or names them if this is not possible.

PYTHON ?= python3
VENV ?= .venv
IN_VENV := $(VENV)/bin/
# CI replaces `-m pytest` by a program that runs failed tests a second time.
PYTEST_BY ?= -m pytest
PYTEST := $(IN_VENV)python $(PYTEST_BY)
# Many images set this variable. With it, each process of the tests would compile all test modules again.
export PYTHONDONTWRITEBYTECODE :=
# Most tests wait for processes most of the time, so there are more processes than CPUs. But each process collects all
# tests first, which takes 4 s of processor time. A process that has no test left takes tests from another process,
# because some tests take much longer than others.
PARALLEL ?= -n 10 --dist worksteal

SLOW_TESTS ?= slow and not nightly
# Tests of each other kind have their own target.
ORDINARY_TESTS := not slow and not image and not docker and not ceph and not browser

EXAMPLE ?= grayify
DIGITS := examples/image-classification

# The output of pip goes to build/logs. If pip fails, the end of it is shown.
PIP := $(IN_VENV)pip --disable-pip-version-check

# The Python for servers that are measured: the Python of Debian if there is one, as in the image.
BENCH_PYTHON ?= $(firstword $(wildcard /usr/bin/python3.13 /usr/bin/python3.11) $(PYTHON))

SECONDS ?= 60
SOAK_SECONDS ?= 600
COVERAGE_OF ?= --ignore=tests/test_examples.py
KILLED_CALLS ?= 20000
DAEMON_CALLS ?= 100000
WARM_CALLS ?= 100000
FUZZ_TARGETS ?= accept intake request response_file script_log service_definition storage_event warm_answer

.DEFAULT_GOAL := help
.PHONY: help setup run test test-unit test-slow nightly image-test docker-test ceph-test browser-test screenshots fuzz soak chaos bench bench-quick docs docs-site lint format lock clean dist lint-workflows coverage

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(VENV)/.ready  ## make .venv with the program and all packages that its tests need

run: $(VENV)/.ready  ## start the server with an example, send it a real file, show the answer, stop the server
	@packages=$$(examples/run-example.sh --packages $(EXAMPLE)) && examples/install-packages.sh curl $$packages
	@PATH="$(abspath $(VENV))/bin:$$PATH" PYTHON=$(PYTHON) examples/run-example.sh $(EXAMPLE)

test: $(VENV)/.ready build/clients/.ready  ## run all tests except the slow ones
	@examples/install-packages.sh apache2-bin busybox-static cowsay curl dash imagemagick mawk nodejs perl procps unzip
	@PYTHON=$(PYTHON) $(DIGITS)/setup.sh
	$(PYTEST) $(PARALLEL) -m "$(ORDINARY_TESTS)"

# The proofs test other tests, so they need no second Python.
test-unit: $(VENV)/.ready build/clients/.ready  ## run the tests of the program itself, for one more Python
	@examples/install-packages.sh apache2-bin busybox-static curl dash procps unzip
	$(PYTEST) $(PARALLEL) -m "$(ORDINARY_TESTS) and not proof" --ignore=tests/test_examples.py \
	    --ignore=tests/contract/test_thumbnails_example.py

test-slow: $(VENV)/.ready build/clients/.ready  ## run the slow tests in their short form (SLOW_TESTS=slow for their full length, too)
	@examples/install-packages.sh curl nodejs procps unzip
	@PYTHON=$(PYTHON) $(DIGITS)/setup.sh
	$(PYTEST) -n 3 --dist worksteal -m "$(SLOW_TESTS)"

nightly:  ## run everything that CI runs, in full length and on every Python that is found
	.ci/run nightly

image-test: $(VENV)/.ready  ## build the image and try it in many containers (as root, on Debian 12; needs no Docker)
	@examples/install-packages.sh binutils buildah busybox-static curl debootstrap git podman procps runc
	$(PYTEST) -m image tests/image

docker-test: $(VENV)/.ready  ## run the Docker commands of the pages with a separate Docker daemon (as root)
	@examples/install-packages.sh busybox-static curl debootstrap git iproute2 iptables runc slirp4netns
	$(PYTEST) -m docker tests/dockerd

ceph-test: $(VENV)/.ready  ## test storage and pushed events with a Ceph cluster on this machine (Debian 12)
	@examples/install-packages.sh ceph-common ceph-mon ceph-osd radosgw
	$(PYTEST) -m ceph tests/storage

browser-test: $(VENV)/.ready  ## use the try-it page in a real browser (Debian's chromium)
	@examples/install-packages.sh chromium fonts-dejavu-core
	@examples/quietly.sh pip-browser $(PIP) install --require-hashes -r tests/browser/requirements.txt
	$(PYTEST) -n 2 -m browser tests/browser

screenshots: $(VENV)/.ready  ## make the pictures of the try-it page in docs/images again
	@examples/install-packages.sh chromium fonts-dejavu-core imagemagick
	@examples/quietly.sh pip-browser $(PIP) install --require-hashes -r tests/browser/requirements.txt
	$(IN_VENV)python tests/browser/screenshots.py

fuzz: $(VENV)/.ready  ## give random bytes to each reader for SECONDS, one reader on each CPU (on x86-64; FUZZ_TARGETS=intake for only one)
	@examples/quietly.sh pip-fuzz $(PIP) install --require-hashes -r tests/fuzz/requirements.txt
	@printf '%s\n' $(FUZZ_TARGETS) | xargs -P "$$(nproc)" -I TARGET sh -c 'examples/quietly.sh fuzz-TARGET \
	    $(IN_VENV)python tests/fuzz/fuzz.py TARGET --seconds $(SECONDS) && echo "TARGET: nothing found"'

soak: $(VENV)/.ready  ## make good, bad, slow and failing calls for SOAK_SECONDS; count lost answers and leaks
	$(IN_VENV)python tests/faults/soak.py --seconds $(SOAK_SECONDS)

chaos: $(VENV)/.ready  ## make calls while scripts, guardians and servers are killed, or scripts leave hidden processes (takes hours)
	$(IN_VENV)python tests/faults/chaos.py kills --calls $(KILLED_CALLS) --terms 30 --kills 15
	$(IN_VENV)python tests/faults/chaos.py daemons --calls $(DAEMON_CALLS)
	$(IN_VENV)python tests/faults/warm_chaos.py --calls $(WARM_CALLS)
	$(IN_VENV)python tests/faults/warm_chaos.py --calls $(WARM_CALLS) --fork

bench: $(VENV)/.ready build/bench-python/.ready build/bench-tree/.ready  ## compare with the bare script and other servers (20 minutes), and update docs/explanation/performance.md
	@benchmarks/install-contenders.sh
	@PYTHON=$(PYTHON) $(DIGITS)/setup.sh
	@examples/quietly.sh pip-benchmarks $(PIP) install --require-hashes -r benchmarks/requirements.txt
	$(IN_VENV)python benchmarks/bench.py --publish

bench-quick: $(VENV)/.ready build/bench-python/.ready build/bench-tree/.ready  ## run a short version of bench, in under three minutes; the results are in build/bench
	@benchmarks/install-contenders.sh
	@PYTHON=$(PYTHON) $(DIGITS)/setup.sh
	@examples/quietly.sh pip-benchmarks $(PIP) install --require-hashes -r benchmarks/requirements.txt
	$(IN_VENV)python benchmarks/bench.py --quick

# The same packages as in the image. With the packages of the tests, a start takes longer.
build/bench-python/.ready: requirements.txt $(VENV)/.ready
	$(BENCH_PYTHON) -m venv --clear --without-pip build/bench-python
	@examples/quietly.sh pip-bench-python $(PIP) --python build/bench-python/bin/python install \
	    --require-hashes -r requirements.txt
	@touch $@

# The self-contained tree of the image, but with the interpreter of this machine. If the tree cannot be built, the
# benchmark runs without it.
build/bench-tree/.ready: $(wildcard image/*) $(shell find watchdog -name '*.py')
	@rm -rf build/bench-tree
	@mkdir -p build/bench-tree
	@-PYTHON=$(BENCH_PYTHON) examples/install-packages.sh binutils gcc musl-tools python3-pip \
	    && examples/quietly.sh bench-tree $(BENCH_PYTHON) image/bundle.py --root build/bench-tree && touch $@

coverage: $(VENV)/.ready  ## report which lines the tests run, here and in the processes they start
	@examples/install-packages.sh apache2-bin busybox-static curl dash procps unzip
	@rm -rf build/coverage && mkdir -p build/coverage
	-$(IN_VENV)python -m coverage run -m pytest $(PARALLEL) -m "$(ORDINARY_TESTS)" $(COVERAGE_OF)
	$(IN_VENV)python -m coverage combine --quiet
	$(IN_VENV)python -m coverage html --quiet
	$(IN_VENV)python -m coverage report --skip-covered

docs: $(VENV)/.ready  ## write the tables of the docs (settings, metrics, statuses, outcomes) from their declarations
	$(IN_VENV)python docs/tables.py

# Do not use --quiet: with it, mkdocs does not find broken links.
docs-site: build/docs/.ready  ## build the site of the docs in build/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 examples/quietly.sh docs-site build/docs/bin/mkdocs build --strict
	@$(IN_VENV)python docs/site_check.py build/site

# MkDocs needs the library `watchdog`, whose import name is that of this program, so it has an environment of its own.
build/docs/.ready: docs/requirements.txt $(VENV)/.ready
	@$(PYTHON) -m venv --clear --without-pip build/docs
	@examples/quietly.sh pip-docs $(PIP) --python build/docs/bin/python install --require-hashes -r docs/requirements.txt
	@touch $@

# A generator of clients in TypeScript. The lock file has the hash of each package, but no name of a registry.
build/clients/.ready: tests/clients/package.json tests/clients/package-lock.json
	@mkdir -p build/clients && cp $^ build/clients
	@if command -v npm >/dev/null; then \
	    examples/quietly.sh npm npm ci --prefix build/clients --ignore-scripts --no-audit --no-fund && touch $@; \
	else \
	    echo "npm is missing, so the test of a client in TypeScript is skipped" >&2; \
	fi

dist: $(VENV)/.ready  ## build the wheel and the sdist into dist/
	$(IN_VENV)python -m hatchling build

lint: $(VENV)/.ready  ## check style, format, types, prose, compose.yaml, workflows, and the docs with their site
	$(IN_VENV)ruff check .
	$(IN_VENV)ruff format --check .
	$(IN_VENV)mypy
	$(IN_VENV)python tests/prose.py
	$(IN_VENV)check-jsonschema --builtin-schema vendor.compose-spec examples/grafana/compose.yaml
	@$(MAKE) --no-print-directory lint-workflows
	$(IN_VENV)python docs/tables.py --check
	@$(MAKE) --no-print-directory docs-site

# Both tools contain their schemas and rules, so they use no network.
lint-workflows:
	$(IN_VENV)check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(IN_VENV)check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(IN_VENV)check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml \
	    .github/ISSUE_TEMPLATE/idea.yml
	$(IN_VENV)zizmor --offline --quiet .github

format: $(VENV)/.ready  ## fix style and format as far as ruff can
	$(IN_VENV)ruff check --fix-only .
	$(IN_VENV)ruff format .

# If PYTHON is given, an environment with another version of Python is made again.
ifneq ($(origin PYTHON),file)
ifneq ($(shell $(PYTHON) --version),$(shell $(IN_VENV)python --version 2>&1))
.PHONY: another-python
$(VENV)/.ready: another-python
endif
endif

$(VENV)/.ready: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' || { \
	    echo "Python 3.11 to 3.14 is needed, and not $(PYTHON); choose one: make PYTHON=python3.12 …" >&2; exit 1; }
	@PYTHON=$(PYTHON) examples/install-packages.sh python3-venv
	@echo "making $(VENV) with the locked packages" >&2
	@$(PYTHON) -m venv --clear $(VENV)
	@examples/quietly.sh pip $(PIP) install --require-hashes -r requirements-dev.txt
	@examples/quietly.sh pip-editable $(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# The locks have the hashes of every wheel, but no name of an index or a host. They are made with the oldest Python,
# which needs the most packages, so they are also enough for newer ones.
LOCK := build/lock/bin/pip-compile --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe \
    --no-header --no-emit-options --annotation-style=line
UNLOCAL := sed -i -e 's/ (pyproject\.toml)//' -e 's/-c [^ ,]*, //' -e '/^--/d' \
    -e '/^$$/d' -e '/^# The following packages/d'

lock:  ## update all requirements*.txt (with Python 3.11) and the lock of the tests' npm packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	    echo "the locks are made with Python 3.11, and not $(PYTHON): make lock PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip --disable-pip-version-check install --quiet --quiet pip-tools
	$(LOCK) --output-file=requirements.txt pyproject.toml
	$(LOCK) --extra=dev --extra=otel --constraint=requirements.txt --output-file=requirements-dev.txt pyproject.toml
	$(LOCK) --extra=otel --constraint=requirements-dev.txt --output-file=image/requirements.txt pyproject.toml
	$(LOCK) --output-file=$(DIGITS)/requirements.txt $(DIGITS)/requirements.in
	$(LOCK) --output-file=tests/fuzz/requirements.txt tests/fuzz/requirements.in
	$(LOCK) --output-file=docs/requirements.txt docs/requirements.in
	$(LOCK) --constraint=requirements-dev.txt --output-file=tests/browser/requirements.txt tests/browser/requirements.in
	$(LOCK) --constraint=requirements-dev.txt --output-file=benchmarks/requirements.txt benchmarks/requirements.in
	cd tests/clients && rm -f package-lock.json && npm install --package-lock-only --ignore-scripts --no-audit \
	    --no-fund --omit-lockfile-registry-resolved
	$(UNLOCAL) requirements.txt requirements-dev.txt image/requirements.txt $(DIGITS)/requirements.txt \
	    tests/fuzz/requirements.txt benchmarks/requirements.txt docs/requirements.txt tests/browser/requirements.txt

clean:  ## remove all files that the other targets made
	rm -rf .venv .venv-* build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache $(DIGITS)/.venv
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
