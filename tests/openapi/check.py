#!/usr/bin/env python3
"""Validates answers of a router against the OpenAPI document.

Usage: check.py DOCUMENT ANSWERS

Each line of ANSWERS is a JSON object with path, status, type (the media type) and body (a text).
Prints a line for each problem: an answer that does not match its schema, a property that the
document lacks, and a part of the document that no answer showed. Exits with 1 if there is one.

The document permits properties that it does not name, because later releases can add some. Here
they are problems."""

import json
import sys
import urllib.parse

import jsonschema

REFERENCE = "#/components/schemas/"
# Statuses that a test cannot cause.
RARE_STATUSES = {"500", "503"}


class Document:
    def __init__(self, document):
        self.paths = document["paths"]
        self.schemas = document["components"]["schemas"]
        # Properties of the schemas that answers had, as SCHEMA.PROPERTY.
        self.shown = set()

    def strict(self, schema, is_part=False):
        """Returns the schema without references, and without room for other properties."""
        if "$ref" in schema:
            return self.strict(self.schemas[schema["$ref"].removeprefix(REFERENCE)], is_part)
        result = dict(schema)
        if "properties" in schema:
            inner = schema["properties"].items()
            result["properties"] = {name: self.strict(value) for name, value in inner}
        for key in ["items", "additionalProperties"]:
            if isinstance(schema.get(key), dict):
                result[key] = self.strict(schema[key])
        if "oneOf" in schema:
            result["oneOf"] = [self.strict(option) for option in schema["oneOf"]]
        if "allOf" in schema:
            result["allOf"] = [self.strict(part, is_part=True) for part in schema["allOf"]]
        if not is_part and ("properties" in schema or "allOf" in schema):
            result["unevaluatedProperties"] = False
        return result

    def record(self, schema, value, name=""):
        """Notes the properties of a valid value."""
        if "$ref" in schema:
            name = schema["$ref"].removeprefix(REFERENCE)
            schema = self.schemas[name]
        for part in schema.get("allOf", []):
            self.record(part, value, name)
        for option in schema.get("oneOf", []):
            if jsonschema.Draft202012Validator(self.strict(option)).is_valid(value):
                self.record(option, value)
        if isinstance(value, list):
            for item in value:
                self.record(schema.get("items", {}), item)
        if isinstance(value, dict):
            for key, inner in value.items():
                if key in schema.get("properties", {}):
                    self.shown.add(f"{name}.{key}")
                    self.record(schema["properties"][key], inner)

    def properties(self):
        """Returns the properties of all schemas, as SCHEMA.PROPERTY."""
        for name, schema in self.schemas.items():
            for part in [schema, *schema.get("allOf", [])]:
                for key in part.get("properties", {}):
                    yield f"{name}.{key}"


def check_answer(document, answer):
    """Yields the problems of one answer."""
    path, status = urllib.parse.urlsplit(answer["path"]).path, str(answer["status"])
    response = document.paths.get(path, {}).get("get", {}).get("responses", {}).get(status)
    if response is None:
        yield "the document lacks this path or status"
        return
    content = response["content"].get(answer["type"])
    if content is None:
        yield f"the document lacks the media type {answer['type']}"
        return
    value = answer["body"]
    if answer["type"] == "application/json":
        value = json.loads(value)
    strict = document.strict(content["schema"])
    jsonschema.Draft202012Validator.check_schema(strict)
    problems = list(jsonschema.Draft202012Validator(strict).iter_errors(value))
    # An undeclared property is reported for each object around it too: only the innermost counts.
    depth = max((len(problem.absolute_path) for problem in problems), default=0)
    for problem in problems:
        if len(problem.absolute_path) == depth:
            best = jsonschema.exceptions.best_match([problem])
            yield f"{best.json_path}: {best.message}"
    if not problems:
        document.record(content["schema"], value)


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        document = Document(json.load(file))
    with open(sys.argv[2], encoding="utf-8") as file:
        answers = [json.loads(line) for line in file]
    problems = []
    statuses = set()
    for answer in answers:
        path = urllib.parse.urlsplit(answer["path"]).path
        statuses.add((path, str(answer["status"])))
        for problem in check_answer(document, answer):
            problems.append(f"{answer['path']}: {answer['status']}: {problem}")
    for path, item in document.paths.items():
        for status in item["get"]["responses"].keys() - RARE_STATUSES:
            if (path, status) not in statuses:
                problems.append(f"{path}: no answer has the status {status}")
    for name in sorted(set(document.properties()) - document.shown):
        problems.append(f"no answer has the property {name}")
    for problem in problems:
        print(problem)
    sys.exit(1 if problems else 0)


main()
