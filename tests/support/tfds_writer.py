"""Prepares small data sets of TensorFlow Datasets, without TensorFlow."""

import tensorflow_datasets as tensorflow_datasets_lib

features_lib = tensorflow_datasets_lib.features


def prepare(data_dir, dataset_name, features, splits, version="1.0.0"):
    """Writes a data set; `splits` is {split: list of examples}."""

    class Builder(tensorflow_datasets_lib.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset_name
        VERSION = tensorflow_datasets_lib.core.Version(version)

        def _info(self):
            return tensorflow_datasets_lib.core.DatasetInfo(
                builder=self, features=features_lib.FeaturesDict(features)
            )

        def _split_generators(self, download_manager):
            return {split: self._generate_examples(rows) for split, rows in splits.items()}

        def _generate_examples(self, rows):
            yield from enumerate(rows)

    Builder(data_dir=data_dir, file_format="array_record").download_and_prepare()
