"""The command that trains a classifier."""

import argparse

from ..core.settings import settings_from
from ..runs.run import Run
from ..tasks.classification import ClassificationConfig, classification
from ..tasks.fit import fit
from ..tasks.start import begin, resume
from .console import user_friendly
from .flags import add_flags, parse_flags


@user_friendly
def classifier(argv: list[str]) -> int:
    """Train a classifier (ResNet-18) on labeled images, for `diffunet evaluate --features FOLDER`.

    The same command resumes it.
    """
    parser = argparse.ArgumentParser(prog="diffunet classifier", description=classifier.__doc__)
    add_flags(parser, ClassificationConfig)
    _, flags = parse_flags(parser, argv)
    config, start = settings_from(ClassificationConfig(), ClassificationConfig, flags), None
    if Run(config.train.output).exists:
        config, start = resume(
            config.train.output, ClassificationConfig, lambda c: settings_from(c, ClassificationConfig, flags)
        )
    ended_by = fit(classification(config), start or begin(config))
    return 128 + ended_by if ended_by else 0
