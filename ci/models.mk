# ci/models.mk: models (made, fetched, given) and the run that they are for.
tiny_model := $(B)/tiny.gguf
$(tiny_model): $(parity)
	$(Q)$(parity) fixture make --shape tiny --seed 1 -o $@

model: ## fetch a registered model into the cache: NAME=... (MIRROR=folder: from there; no NAME: list them)
	@sh ci/deps.sh --model
	@python3 fixtures/fetch_model.py $(if $(NAME),"$(NAME)") $(if $(MIRROR),--mirror "$(MIRROR)")

# The shell reads MODEL, PROMPT and PATHS from the environment, where make puts what was typed: no quoting is undone.
parity: export MODEL := $(MODEL)
parity: export PROMPT := $(PROMPT)
parity: export PATHS := $(PATHS)
parity: $(parity) $(if $(MODEL),,$(tiny_model)) ## the differential run: MODEL=name-or-path PROMPT=... PATHS=... ARGS=...
	@sh ci/parity.sh $(parity) $(tiny_model) $(ARGS)

selftest: export MODEL := $(MODEL)
selftest: $(parity) ## how good the instrument is, measured: MODEL=name-or-path (default: built in) ARGS=...
	@$(parity) selftest $${MODEL:+"$$MODEL"} $(ARGS)
