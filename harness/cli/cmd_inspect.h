/* harness/cli/cmd_inspect.h: `parity inspect MODEL`. argv[0] is "inspect". Exit: 0 shown, 2 usage or no such
 * file, 4 not readable as GGUF. */
#ifndef HARNESS_CLI_CMD_INSPECT_H
#define HARNESS_CLI_CMD_INSPECT_H

int cmd_inspect(int argc, char **argv);

#endif
