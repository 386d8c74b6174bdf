#!/bin/sh
# Make the environment of this example, .venv, with DEEPaaS, scikit-learn and the plug-in, and train the classifier.
# Does nothing if all of these exist and have not changed.
set -eu
cd "$(dirname "$0")"

python=${PYTHON:-python3}
stamp=$({ pwd; "$python" --version; cat requirements.txt setup.sh plugin/pyproject.toml plugin/digits_classifier/*.py; } | sha256sum)
if [ "$(cat .venv/set-up 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi

echo "setting up examples/image-classification: about 400 MB in its .venv" >&2
../install-packages.sh python3-venv
"$python" -m venv --clear .venv
pip="./.venv/bin/pip --disable-pip-version-check install"
../quietly.sh pip-classifier $pip --require-hashes -r requirements.txt
../quietly.sh pip-plugin $pip --no-deps --no-build-isolation ./plugin
./.venv/bin/python -m digits_classifier.train
echo "$stamp" > .venv/set-up
