"""ONNX Runtime's own quantizer on one float model and one set of samples: what bench/onnx-vs-ort.mjs compares with.

Usage: ort-quantize.py model.onnx lifted.onnx calibrate.npz folder name=1x3x224x224 ...
Writes <scheme>-<preset>-<source>.onnx for every scheme, preset and source, and said.json: which of them could not be made, and
why. The tools stumble over some models of old opsets: `lifted.onnx` is the same float graph at opset 21 with its constants folded. Needs onnxruntime 1.32.0 and onnx 1.20.1.
"""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize, quantize_static
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model
from onnxruntime.quantization.shape_inference import quant_pre_process

ACTIVATIONS = {"w8a8": QuantType.QUInt8, "w8a16": QuantType.QUInt16}


class Samples(CalibrationDataReader):
    """Samples along the first axis of every array of a .npz."""

    def __init__(self, path, inputs):
        arrays = {name: array for name, array in np.load(path).items() if name in inputs}
        count = min(len(array) for array in arrays.values())
        self.feeds = [{name: np.asarray(array[i]) for name, array in arrays.items()} for i in range(count)]
        self.rewind()

    def rewind(self):
        self.rest = iter(self.feeds)

    def get_next(self):
        return next(self.rest, None)


def fix_shapes(path, shapes, out):
    """Writes the model with inputs of fixed shape and no weights among its inputs, so that the tools can fold them."""
    model = onnx.load(path)
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for value in inputs:
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for size in shapes[value.name]:
            shape.dim.add().dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    onnx.save(onnx.shape_inference.infer_shapes(model), out)


def default_preset(source, out, samples, activation, per_channel):
    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared)
    quantize_static(
        prepared,
        out,
        samples(prepared),
        quant_format=QuantFormat.QDQ,
        activation_type=activation,
        weight_type=QuantType.QInt8,
        per_channel=per_channel,
    )


def qnn_preset(source, out, samples, activation, per_channel):
    prepared = out.with_suffix(".prepared.onnx")
    model = prepared if qnn_preprocess_model(source, prepared) else source
    config = get_qnn_qdq_config(
        model,
        samples(model),
        activation_type=activation,
        weight_type=QuantType.QInt8 if per_channel else QuantType.QUInt8,
        per_channel=per_channel,
    )
    quantize(model, out, config)


PRESETS = {
    "default": (default_preset, False),
    "default-per-channel": (default_preset, True),
    "qnn": (qnn_preset, False),
    "qnn-per-channel": (qnn_preset, True),
}


def main(model, lifted, calibrate, folder, *shapes):
    logging.disable(logging.WARNING)
    folder = Path(folder)
    fixed = {name: [int(dim) for dim in dims.split("x") if dim] for name, dims in (each.rsplit("=", 1) for each in shapes)}
    untouched = folder / "fixed.onnx"
    fix_shapes(model, fixed, untouched)

    def samples(path):
        model = onnx.load(path, load_external_data=False)
        return Samples(calibrate, {value.name for value in model.graph.input})

    said = {}
    for scheme, activation in ACTIVATIONS.items():
        for preset, (make, per_channel) in PRESETS.items():
            for source, name in ((untouched, "untouched"), (Path(lifted), "lifted")):
                out = folder / f"{scheme}-{preset}-{name}.onnx"
                try:
                    make(source, out, samples, activation, per_channel)
                    said[out.stem] = {}
                except Exception as error:
                    said[out.stem] = {"error": f"{type(error).__name__}: {error}"[:300]}
    (folder / "said.json").write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
