"""``python -m digits_classifier.train``: make the classifier from the digits that scikit-learn ships.

A quarter of the digits is not used for the training. With these digits the program measures how often the classifier is
right. ``--sample PATH`` writes one of them as a picture: the input of the example, which the classifier has never seen.
"""

from __future__ import annotations

import argparse

import joblib
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from . import INK, MODEL_PATH, SIDE

ENLARGED = 8  # each pixel of a digit becomes 8 by 8 pixels of the picture


def main() -> None:
    parser = argparse.ArgumentParser(description="train the classifier of digits")
    parser.add_argument("--sample", metavar="PATH", help="write one digit of the test data to PATH, and exit")
    sample = parser.parse_args().sample

    digits, labels = load_digits(return_X_y=True)
    learned, held_back, learned_labels, held_back_labels = train_test_split(
        digits, labels, test_size=0.25, random_state=1, stratify=labels
    )
    if sample is not None:
        shades = bytes(round(ink * 255 / INK) for ink in held_back[0])
        picture = Image.frombytes("L", (SIDE, SIDE), shades)
        picture.resize((SIDE * ENLARGED, SIDE * ENLARGED), Image.Resampling.NEAREST).save(sample)
        print(f"{sample} is a {held_back_labels[0]}")
        return

    classifier = make_pipeline(MaxAbsScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(learned, learned_labels)
    joblib.dump(classifier, MODEL_PATH)
    share = classifier.score(held_back, held_back_labels)
    print(f"trained on {len(learned)} digits; right for {share:.1%} of {len(held_back)} others")


if __name__ == "__main__":
    main()
