#!/usr/bin/env python3
"""Validates TOML files against a JSON schema.

Usage: validate.py SCHEMA FILE...

Prints one line per file: its path, and "valid", "not TOML" or the first problem."""

import json
import sys
import tomllib

import jsonschema


def validate(validator, path):
    try:
        with open(path, "rb") as file:
            settings = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return "not TOML"
    problem = jsonschema.exceptions.best_match(validator.iter_errors(settings))
    return "valid" if problem is None else problem.message.split("\n", 1)[0]


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        schema = json.load(file)
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    for path in sys.argv[2:]:
        print(f"{path}: {validate(validator, path)}")


main()
