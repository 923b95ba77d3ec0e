"""Converts one ONNX model with onnx2tf for bench/tflite-models.mjs: a folder with job.json and raw samples in, one JSON line out.

Made for onnx2tf 1.29.24, tensorflow-cpu 2.19.1. The time is that of the float conversion alone, imports left out.
"""
import glob
import json
import os
import sys
import time

import numpy as np

folder = sys.argv[1]
os.chdir(folder)
# It downloads sample images when this file is not there; the samples that count are given below.
np.save("calibration_image_sample_data_20x128x128x3_float32.npy", np.zeros((20, 128, 128, 3), np.float32))

import onnx  # noqa: E402
import onnx2tf  # noqa: E402

with open("job.json") as file:
    job = json.load(file)
shapes = [f"{name}:{value.replace('x', ',')}" for name, value in (each.rsplit("=", 1) for each in job["bind"]) if "x" in value]
numbers = {name: int(value) for name, value in (each.rsplit("=", 1) for each in job["bind"]) if "x" not in value}
calibration = []
for i, each in enumerate(job["inputs"]):
    data = np.fromfile(f"{i}.f32", np.float32).reshape(each["shape"])
    np.save(f"{i}.npy", data)
    channels = data.shape[-1] if data.ndim > 2 else 1
    zeros, ones = [[0.0] * channels], [[1.0] * channels]
    calibration.append([each["name"], f"{i}.npy", zeros, ones])

# The tool writes a simplified model over the one that it is given: it gets a copy. Symbolic dimensions become numbers in it,
# since the tool binds whole shapes only.
loaded = onnx.load(job["model"])
for value in loaded.graph.input:
    for dim in value.type.tensor_type.shape.dim:
        if dim.dim_param in numbers:
            dim.dim_value = numbers[dim.dim_param]
model = os.path.join(folder, "model.onnx")
onnx.save(loaded, model)

options = dict(
    input_onnx_file_path=model,
    overwrite_input_shape=shapes or None,
    non_verbose=True,
    copy_onnx_input_output_names_to_tflite=True,
)


def only(pattern):
    found = sorted(glob.glob(pattern))
    return os.path.join(folder, found[0]) if found else None


result = {}
try:
    started = time.perf_counter()
    onnx2tf.convert(output_folder_path="float", **options)
    result["seconds"] = time.perf_counter() - started
    result["float"] = only("float/*_float32.tflite")
    try:
        onnx2tf.convert(
            output_folder_path="int8",
            output_integer_quantized_tflite=True,
            quant_type="per-channel",
            custom_input_op_name_np_data_path=calibration,
            **options,
        )
        # Integers inside, float ports.
        result["int8"] = only("int8/*[!l]_integer_quant.tflite")
    except BaseException as error:  # noqa: BLE001
        result["int8_error"] = str(error)[:200]
except BaseException as error:  # noqa: BLE001
    result["error"] = f"{type(error).__name__}: {error}"[:100].split("\n")[0]
print()
print(json.dumps(result))
