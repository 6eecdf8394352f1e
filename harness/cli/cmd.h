/* harness/cli/cmd.h: the subcommands. Each gets its own name as argv[0] and returns the exit code. */
#ifndef HARNESS_CLI_CMD_H
#define HARNESS_CLI_CMD_H

int cmd_bench(int argc, char **argv);
int cmd_diff(int argc, char **argv);
int cmd_contract(int argc, char **argv);
int cmd_fixture(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_judge(int argc, char **argv);
int cmd_paths(int argc, char **argv);
int cmd_replay(int argc, char **argv);
int cmd_run(int argc, char **argv);
int cmd_selftest(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_trace(int argc, char **argv);

#endif
