# What is done with this checkout; `make help` lists it.

# Make's own /bin/sh and a search path without a version manager's shims, which stand in for a Python and are none.
export PATH := /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Of the caller's settings for Python none is meant for ours. Ansible wants UTF-8, which a bare container does not set.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV
export LC_ALL := C.UTF-8
# By name, since Ansible ignores an ansible.cfg in a directory that others can write to.
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export ANSIBLE_DISPLAY_SKIPPED_HOSTS := false

PYTHON := python3
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# Further arguments of ansible-playbook, pytest, ansible-test or the benchmarks.
ARGS :=
# Where `make dist` puts the tarball, and the address of the repository that it shall name, which Galaxy insists on.
DIST := build
REPOSITORY :=
# The releases of ansible-core that ansible-test is run of; all, where it is empty.
CORE :=

VENV := .venv
LINK := .collections/ansible_collections/hostnet/qemu
# With the version in their names: another Python needs the environment anew.
SITE := $(VENV)/site-$(PYTHON_VERSION)
TEST := $(VENV)/test-$(PYTHON_VERSION)
# Apart from the rest, whose packages it need not agree with.
MOLECULE_VENV := build/molecule
MOLECULE := $(MOLECULE_VENV)/ready-$(PYTHON_VERSION)
# What `make molecule` runs, and on what: all scenarios on all releases of Debian.
SCENARIO :=
MOLECULE_PLATFORMS ?= debian
DOCS_VENV := build/docs
DOCS := $(DOCS_VENV)/ready-$(PYTHON_VERSION)
# What Sphinx reads: the pages with all that they link to, where they stand in the checkout, and what the plugins document.
PAGES := build/pages
PAGE_SOURCES := CHANGELOG.md CONTRIBUTING.md LICENSE README.md docs docs/site/index.md files plugins roles
# Apart too, since it pins what the other linters use.
IMPORTER_VENV := build/importer
IMPORTER := $(IMPORTER_VENV)/ready-$(PYTHON_VERSION)

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet

.DELETE_ON_ERROR:
.PHONY: help site venv collections test unit molecule invocations lint galaxy sanity units integration bench docs launchers dist ready clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

site: venv collections ## run site.yml, against this host if ARGS="-i INVENTORY" names no others
	@ask=; \
	case ' $(subst ','\'',$(ARGS)) ' in \
	*' -i'* | *' --inventory'* | *' -K'* | *' --ask-become-pass'* | *' --become-'*) ;; \
	*)  if [ "$$(id -u)" -ne 0 ]; then \
	        if ! command -v sudo >/dev/null; then \
	            echo 'site: this needs root, and there is no sudo: be root, or give ARGS="--become-method su -K".' >&2; \
	            exit 1; \
	        fi; \
	        sudo -k -n true 2>/dev/null || ask=--ask-become-pass; \
	    fi ;; \
	esac; \
	$(VENV)/bin/ansible-playbook site.yml $$ask $(ARGS)

venv: $(SITE) ## make .venv with what Ansible's side needs

collections: $(LINK) ## make the link by which Ansible finds this checkout as hostnet.qemu

test: $(TEST) collections ## run all tests, as root and in namespaces of their own
	@$(call need,$(TEST_COMMANDS))
	@$(AS_ROOT) $(VENV)/bin/pytest $(ARGS)

unit: $(TEST) collections ## run the tests that take little time
	@$(call need,ip:iproute2 getcap:libcap2-bin)
	@$(AS_ROOT) $(VENV)/bin/pytest tests/unit $(ARGS)

molecule: $(MOLECULE) collections ## run the role in containers with systemd
	@$(call need,podman:podman runc:runc mmdebstrap:mmdebstrap git:git)
	@$(AS_ROOT) $(MOLECULE_VENV)/bin/python -m tests.molecule \
	    --platforms='$(MOLECULE_PLATFORMS)' --scenarios='$(SCENARIO)' $(ARGS)

invocations: $(TEST) collections ## write the table in docs/invocations.md, from runs of every QEMU
	@$(call need,ip:iproute2 getcap:libcap2-bin)
	@$(AS_ROOT) $(VENV)/bin/pytest tests/e2e/test_invocations.py --all-qemus --write-docs

lint: $(TEST) collections ## check the style of everything, and what Galaxy would say
	@$(call need,git:git)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/yamllint --strict .
	$(VENV)/bin/shellcheck $$($(SCRIPTS) | grep -v '\.j2$$')
	@for template in $$($(SCRIPTS) | grep '\.j2$$'); do \
	    echo "$(VENV)/bin/shellcheck $$template"; \
	    sed 's/{{[^}]*}}/words/' "$$template" | $(VENV)/bin/shellcheck - || exit 1; \
	done
	$(VENV)/bin/ansible-lint -q --offline
	$(VENV)/bin/antsibull-changelog lint
	$(MAKE) --no-print-directory galaxy

galaxy: $(IMPORTER) ## import the tarball as Galaxy does; a warning is an error
	@rm -rf build/galaxy
	@$(MAKE) --no-print-directory dist DIST=build/galaxy REPOSITORY='$(or $(REPOSITORY),https://repository.invalid)'
	@cd build/galaxy && \
	    if ! PATH="$(CURDIR)/$(IMPORTER_VENV)/bin:$$PATH" GALAXY_IMPORTER_ANSIBLE_LOCAL_TMP="$$PWD/tmp" \
	        python -m galaxy_importer.main hostnet-qemu-*.tar.gz >log || grep -qE '^(WARNING|ERROR|CRITICAL)' log; \
	    then \
	        cat log; \
	        exit 1; \
	    fi

sanity: ## run ansible-test sanity of three releases of ansible-core; CORE=2.21 is one
	@$(check_python)
	@$(call need,git:git)
	@$(PYTHON) -m tests.cores sanity $(addprefix --core=,$(CORE)) $(ARGS)

units: ## run ansible-test units, as root, with every Python that is here; CORE as above
	@$(check_python)
	@$(call need,git:git ip:iproute2 getcap:libcap2-bin)
	@$(AS_ROOT) $(PYTHON) -m tests.cores units $(addprefix --core=,$(CORE)) $(ARGS)

integration: ## run the integration targets of ansible-test, as root and in namespaces of their own; CORE as above
	@$(check_python)
	@$(call need,git:git ip:iproute2 getcap:libcap2-bin)
	@$(AS_ROOT) $(PYTHON) -m tests.cores integration $(addprefix --core=,$(CORE)) $(ARGS)

bench: $(TEST) collections ## measure what the budgets are about
	@$(call need,ip:iproute2)
	@$(AS_ROOT) $(VENV)/bin/python -m tests.bench $(ARGS)

docs: $(DOCS) collections ## check what the plugins document, and build the site below build/site
	@$(call need,git:git)
	@PATH="$(CURDIR)/$(DOCS_VENV)/bin:$$PATH" && \
	umask 022 && \
	rm -rf $(PAGES) build/site && \
	mkdir -p $(PAGES)/collections && \
	cp --recursive $(PAGE_SOURCES) $(PAGES) && \
	antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs all . && \
	antsibull-docs --config-file docs/site/antsibull-docs.cfg collection --use-current --squash-hierarchy \
	    --fail-on-error --dest-dir $(PAGES)/collections hostnet.qemu && \
	sphinx-build --quiet --fail-on-warning --conf-dir docs/site $(PAGES) build/site && \
	python -m tests.docsite build/site

launchers: ## build the launcher of every architecture; the same bytes come out on any machine
	@PYTHON='$(PYTHON)' files/launcher/build

dist: $(SITE) ## build the tarball that ansible-galaxy installs, below build/
	@$(call need,git:git)
	@rm -rf build/dist
	@mkdir -p build/dist
	@git ls-files -z | xargs -0 cp --parents --no-dereference --target-directory=build/dist
	@$(if $(REPOSITORY),echo 'repository: $(REPOSITORY)' >>build/dist/galaxy.yml)
	@$(VENV)/bin/ansible-galaxy collection build --force --output-path $(DIST) build/dist
	@rm -rf build/dist

ready: $(TEST) $(MOLECULE) $(DOCS) $(IMPORTER) collections ## install what the others need, to run several at once
	@$(call need,$(TEST_COMMANDS))

clean: ## remove what make has made
	rm -rf $(VENV) .collections .cache build .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(SITE): requirements/site.txt
	@$(check_python)
	@echo 'Making $(VENV) with what Ansible needs.'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -r requirements/site.txt
	@touch "$(VENV)/site-$$($(VENV)/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')"

$(TEST): requirements/test.txt $(SITE)
	@echo 'Adding to $(VENV) what the tests need.'
	@$(PIP) install -r requirements/test.txt
	@touch $@

# An environment of its own, with what that file of requirements says.
build/%/ready-$(PYTHON_VERSION): requirements/%.txt requirements/site.txt
	@$(check_python)
	@echo 'Making build/$* with what requirements/$*.txt names.'
	@$(PYTHON) -m venv build/$*
	@build/$*/bin/python -m pip --disable-pip-version-check --quiet install -r $<
	@touch $@

$(LINK):
	@mkdir -p $(@D)
	@ln -sfn ../../.. $@

# What all tests call, with the packages that have it; other targets need some of these.
TEST_COMMANDS := ip:iproute2 getcap:libcap2-bin setfacl:acl git:git mmdebstrap:mmdebstrap podman:podman runc:runc

# Packages, namespaces and file capabilities are root's to make; sudo asks for the password where it has to, and drops
# the variables that are not handed on here.
HANDED_ON := $(foreach name,PATH LC_ALL ANSIBLE_CONFIG CI CI_SUMMARY,$(if $($(name)),$(name)="$($(name))"))
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo env $(HANDED_ON))

# The scripts for a shell among the files that git knows.
SCRIPTS := git ls-files | xargs -d '\n' awk 'FNR == 1 && /^\#!.*sh$$/ { print FILENAME }'

# $(call install,PACKAGE …): install Debian's packages.
define install
if ! command -v apt-get >/dev/null; then \
    echo "make: this needs what Debian packages as" $(1)": install it, and run make again." >&2; exit 1; \
fi; \
if [ -n '$(AS_ROOT)' ] && ! command -v sudo >/dev/null; then \
    echo "make: packages are missing and there is no sudo: as root, apt-get install" $(1) >&2; exit 1; \
fi; \
echo "Installing" $(1)"."; \
$(AS_ROOT) apt-get -qq update && \
$(AS_ROOT) env DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes \
    apt-get -qq install --no-install-recommends $(1) >/dev/null || exit 1
endef

# $(call need,COMMAND:PACKAGE …): install the packages of those commands that are missing.
define need
missing=; \
for pair in $(1); do command -v "$${pair%%:*}" >/dev/null || missing="$$missing $${pair#*:}"; done; \
if [ -n "$$missing" ]; then $(call install,$$missing); fi
endef

# A Python of 3.11 or newer that can make virtual environments; what is missing of it is installed.
define check_python
if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then $(call install,python3-venv); fi; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
    echo "make: Ansible needs Python 3.11 or newer here, and this is $$($(PYTHON) --version):" \
        'give another by PYTHON=, or run make on a newer machine with ARGS="-i INVENTORY".' >&2; \
    exit 1; \
}
endef
