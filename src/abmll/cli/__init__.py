"""The command line: one file a verb, whose function signature is its flags (see `abmll.cli.flags`)."""
