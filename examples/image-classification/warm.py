#!/usr/bin/env python3
"""The same function for WATCHDOG_WARM: this script loads the model once, and then calls it for each picture."""

import json
import os
import sys

# The helper is part of the program. Without the program, Python looks for the helper beside this file.
sys.path.append(os.path.dirname(os.environ.get("WATCHDOG_WARM_PY", __file__)))

import digits_classifier
from deepaas.model.v2.wrapper import UploadedFile
from watchdog_warm import serve

digits_classifier.warm()


@serve
def call(input_path, output_dir):
    picture = UploadedFile(filename=input_path)
    answer = digits_classifier.predict_data({"files": [picture]})
    with open(os.path.join(output_dir, "digit.json"), "w") as file:
        print(json.dumps(answer), file=file)
