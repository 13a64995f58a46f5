# The few verbs for people and for continuous integration; `make help` lists them.

# Always Debian's own Python, whatever another python3 comes first in PATH: mcvirtd runs on it.
PYTHON := /usr/bin/python3
VENV := .venv
PY := $(VENV)/bin/python
BUILD := build

# Where `make install` puts things; DESTDIR is for packagers, WHEELS a directory made by `make wheels`.
PREFIX ?= /usr/local
DESTDIR ?=
WHEELS ?=
UNITDIR ?= $(PREFIX)/lib/systemd/system
LIB := $(PREFIX)/lib/mcvirt
SHARE := $(PREFIX)/share

# The virtual environment is made anew whenever what it is made from has changed.
READY := $(VENV)/ready-$(shell { cat pyproject.toml; $(PYTHON) -VV; pwd; } 2>/dev/null | sha256sum | cut -c 1-16)
PIP_QUIET := --disable-pip-version-check --no-input --progress-bar off

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help demo test check bench bench-lab docs deps packages wheels install uninstall clean lab test-lab

help: ## list these verbs
	@echo "make VERB, where VERB is one of:"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' Makefile | expand -t 14

# --- work on the code ---------------------------------------------------------------------------------------------

demo: deps ## a virtual machine from its creation to its end, and a cluster of two nodes, all private (as root)
	@exec $(PY) -m demo

test: deps ## the unit tests, and those with real libvirt and QEMU (these as root)
	@exec $(PY) -m pytest -n auto --maxprocesses=4 --dist loadfile --durations=20 tests/unit tests/node

test-lab: deps ## the stories on complete nodes with LVM, DRBD and systemd, as emulated machines (as root); LONG=1: also long ones
	@MCVIRT_LAB_LONG=$(LONG) exec $(PY) -m pytest --durations=20 tests/lab

lab: deps ## fresh nodes to try things on; DO='shell 1', DO=down, DO=help (as root)
	@exec $(PY) -m tests.lab $(DO)

check: deps ## lint, types, layering
	@set -x
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/unit/test_layering.py tests/unit/test_docs.py

bench: deps ## measure against plain Pyro4 and libvirt; writes build/bench.json
	@exec $(PY) -m tests.bench

bench-lab: deps ## measure replicated disks and their machines in the lab; ONLY=PART; writes build/bench-lab.json (as root)
	@exec $(PY) -m tests.lab.bench $(if $(ONLY),--only $(ONLY))

docs: deps ## write docs/permissions.md from the contracts, and the manual pages into build/man
	@$(PY) -m docs.permissions docs/permissions.md
	mkdir -p $(BUILD)/man
	$(PY) -m mcvirt_client.cli.manpage $(BUILD)/man
	cp docs/man/mcvirtd.8 docs/man/mcvirtd.toml.5 $(BUILD)/man/
	echo "docs/permissions.md and $(BUILD)/man are current."

deps: packages $(READY) ## install what is missing: Debian's packages (as root), and Python's in .venv

packages:
	@.ci/deps

$(READY):
	@echo "deps: making $(VENV) (libvirt-python is compiled: this may take a minute)"
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip -q install $(PIP_QUIET) -e '.[daemon,dev]'
	touch $@

clean: ## remove what was made here, and nothing that is installed
	@[[ ! -x $(PY) ]] || $(PY) -m tests.lab down || true
	rm -rf $(BUILD) dist $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find mcvirt mcvirt_client mcvirtd tests demo docs -type d -name __pycache__ -prune -exec rm -rf {} +

# --- install ------------------------------------------------------------------------------------------------------

wheels: ## make WHEELS (build/wheels): all that `make install WHEELS=...` needs on a machine without network
	@wheels="$(or $(WHEELS),$(BUILD)/wheels)"
	work="$$(mktemp -d)"
	trap 'rm -rf "$$work"' EXIT
	$(call sources,$$work/source)
	$(PYTHON) -m venv "$$work/pip"
	mkdir -p "$$wheels"
	"$$work/pip/bin/pip" -q wheel $(PIP_QUIET) --wheel-dir "$$wheels" "$$work/source[daemon]" 'setuptools>=70.1'
	echo "$$wheels: $$(ls "$$wheels" | wc -l) wheels"

# The sources alone, elsewhere: a build in this tree would take along what an earlier one left in build/lib.
define sources
mkdir -p "$(1)" && cp -R mcvirt mcvirt_client mcvirtd pyproject.toml setup.py README.md LICENSE "$(1)"
endef

# Each installation is a directory of its own below LIB, and `current` names the one in use: it is switched to only
# when it is complete, and a daemon that runs from the one before keeps its files until the installation after.
install: ## install under PREFIX (/usr/local); with WHEELS=DIR without network; DESTDIR for packagers
	@fail() { echo "install: $$*" >&2; exit 1; }
	[[ "$(PREFIX)" == /* ]] || fail "PREFIX must be an absolute path"
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || fail "python3-venv is missing: apt-get install python3-venv"
	if [[ -z "$(WHEELS)" ]] && ! pkg-config --exists libvirt 2>/dev/null; then
	    fail "libvirt-dev is missing, which libvirt-python is compiled with: \`make packages\` installs it"
	fi
	[[ -z "$(WHEELS)" || -d "$(WHEELS)" ]] || fail "there is no directory $(WHEELS): \`make wheels\` makes one"
	root="$(DESTDIR)" lib="$(DESTDIR)$(LIB)" share="$(DESTDIR)$(SHARE)"
	release="$$(sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)-$$(date -u +%Y%m%d%H%M%S)-$$$$"
	new="$$lib/$$release"
	umask 022
	work="$$(mktemp -d)"
	trap 'rm -rf "$$work" "$$new"' EXIT
	$(call sources,$$work/source)
	$(PYTHON) -m venv "$$work/pip"
	mkdir -p "$$lib"
	$(PYTHON) -m venv --without-pip "$$new"
	"$$work/pip/bin/pip" -q --python "$$new/bin/python" install $(PIP_QUIET) --no-compile --no-warn-script-location \
	    $(if $(WHEELS),--no-index --find-links "$(abspath $(WHEELS))") "$$work/source[daemon]"
	# Nothing in it may speak of where it was made.
	rm -f "$$new"/bin/[!p]* "$$new"/bin/pyro4-* "$$new"/bin/python-argcomplete* "$$new"/lib/*/site-packages/*/direct_url.json
	sed -i '/^command = /d' "$$new/pyvenv.cfg"
	command_script() {
	    # -I: neither the directory it is started in nor PYTHONPATH says what code root runs.
	    printf '#!%s/bin/python3 -I\nfrom %s import main\n\nraise SystemExit(main())\n' "$(LIB)/$$release" "$$2" > "$$new/bin/$$1"
	    chmod 755 "$$new/bin/$$1"
	}
	command_script mcvirt mcvirt_client.cli.main
	command_script mcvirtd mcvirtd.main
	command_script mcvirt-drbd-handler mcvirtd.drbd.handler
	"$$new/bin/python" -I -m compileall -q $${root:+-s "$$root" -p /} "$$new/lib"
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/sbin" "$(DESTDIR)$(UNITDIR)" \
	    "$$share/bash-completion/completions" "$$share/man/man1" "$$share/man/man5" "$$share/man/man8" "$$share/doc/mcvirt"
	"$$new/bin/python" -I -m mcvirt_client.cli.completion > "$$work/completion"
	"$$new/bin/python" -I -m mcvirt_client.cli.manpage "$$work"
	sed 's|/usr/local/|$(PREFIX)/|g' systemd/mcvirtd.service > "$$work/mcvirtd.service"
	install -m 644 "$$work/completion" "$$share/bash-completion/completions/mcvirt"
	install -m 644 "$$work/mcvirt.1" "$$share/man/man1/mcvirt.1"
	install -m 644 docs/man/mcvirtd.toml.5 "$$share/man/man5/mcvirtd.toml.5"
	install -m 644 docs/man/mcvirtd.8 "$$share/man/man8/mcvirtd.8"
	install -m 644 "$$work/mcvirtd.service" "$(DESTDIR)$(UNITDIR)/mcvirtd.service"
	install -m 644 docs/mcvirtd.toml.example README.md CHANGELOG.md LICENSE docs/permissions.md docs/clustering.md "$$share/doc/mcvirt/"
	before="$$(readlink "$$lib/current" || true)"
	ln -sfn "$$release" "$$lib/.next"
	mv -T "$$lib/.next" "$$lib/current"
	trap 'rm -rf "$$work"' EXIT
	ln -sfn ../lib/mcvirt/current/bin/mcvirt "$(DESTDIR)$(PREFIX)/bin/mcvirt"
	ln -sfn ../lib/mcvirt/current/bin/mcvirtd "$(DESTDIR)$(PREFIX)/sbin/mcvirtd"
	find "$$lib" -mindepth 1 -maxdepth 1 -type d ! -name "$$release" ! -name "$${before:-none}" -exec rm -rf {} +
	echo "install: $$release is in $$lib"
	if [[ -z "$$root" && -d /run/systemd/system ]]; then
	    systemctl daemon-reload
	    echo "install: \`mcvirtd --check\` looks at this machine; \`systemctl enable mcvirtd && systemctl restart mcvirtd\` starts it"
	fi

uninstall: ## remove what `make install` put there; virtual machines, state and settings stay
	@if [[ -z "$(DESTDIR)" && -d /run/systemd/system ]]; then
	    # Not the daemon of another PREFIX.
	    [[ "$$(systemctl show -P FragmentPath mcvirtd.service)" != "$(UNITDIR)/mcvirtd.service" ]] || systemctl disable --now mcvirtd
	fi
	rm -rf "$(DESTDIR)$(LIB)" "$(DESTDIR)$(SHARE)/doc/mcvirt"
	rm -f "$(DESTDIR)$(PREFIX)/bin/mcvirt" "$(DESTDIR)$(PREFIX)/sbin/mcvirtd" "$(DESTDIR)$(UNITDIR)/mcvirtd.service" \
	    "$(DESTDIR)$(SHARE)/bash-completion/completions/mcvirt" "$(DESTDIR)$(SHARE)/man/man1/mcvirt.1" \
	    "$(DESTDIR)$(SHARE)/man/man5/mcvirtd.toml.5" "$(DESTDIR)$(SHARE)/man/man8/mcvirtd.8"
	# The directories that only we had something in.
	for directory in "$(UNITDIR)" "$(PREFIX)/lib/systemd" "$(SHARE)"/{bash-completion/completions,bash-completion,doc,man/man{1,5,8}}; do
	    [[ ! -d "$(DESTDIR)$$directory" ]] || rmdir --ignore-fail-on-non-empty "$(DESTDIR)$$directory"
	done
	if [[ -z "$(DESTDIR)" && -d /run/systemd/system ]]; then
	    systemctl daemon-reload
	fi
	echo "uninstall: done; /etc/mcvirt and /var/lib/mcvirt are as they were"
