# ci/deps.mk: included before anything is built; installs what is missing once (see ci/deps.sh).
deps_missing := $(shell sh ci/deps.sh --check >/dev/null 2>&1 || echo yes)
ifeq ($(deps_missing),yes)
deps_done := $(shell sh ci/deps.sh >&2 || echo failed)
ifeq ($(deps_done),failed)
$(error the packages above are missing)
endif
endif
