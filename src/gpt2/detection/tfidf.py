"""The trained baseline: logistic regression on words, by scikit-learn where it is installed."""

import numpy as np

from gpt2.errors import UserError

MOST_FEATURES = 2**21  # the most frequent words and pairs


def require_sklearn():
    """Raise UserError unless scikit-learn can be imported."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise UserError(f'--baseline needs scikit-learn ({error}); install it with '
                        'python3 -m pip install scikit-learn, or leave the flag out')


def classify(human, synthetic, human_test, synthetic_test):
    """Train on human and synthetic texts; return the values of others, float64 [N] and [M].

    A value is the log odds that a text is synthetic. The features are TF-IDF of words and pairs of
    words; the two sides weigh the same, whatever their numbers. Raises UserError if no text has a
    word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), max_features=MOST_FEATURES)
    try:
        features = vectorizer.fit_transform([*human, *synthetic])
    except ValueError:  # an empty vocabulary
        raise UserError('the texts have no words for --baseline; leave the flag out')
    model = LogisticRegression(class_weight='balanced', max_iter=1000)
    model.fit(features, np.repeat([0, 1], [len(human), len(synthetic)]))
    values = model.decision_function(vectorizer.transform([*human_test, *synthetic_test]))
    return values[:len(human_test)], values[len(human_test):]
