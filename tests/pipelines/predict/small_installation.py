"""An installation of requirements-predict.txt alone, and everything that it must be able to predict."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict

from packaging.requirements import Requirement

from histoblend.models import cnn
from tests import ROOT


def pins(file):
    """Requirements of a file that `make lock` wrote."""
    lines = re.findall(r"^[\w.-]+==[^\\\n]+", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    return [Requirement(line) for line in lines]


def link_packages(folder):
    """Fill a folder with links to the packages in requirements-predict.txt, to be used instead of site-packages."""
    for requirement in pins("requirements-predict.txt"):
        if requirement.marker is None or requirement.marker.evaluate():
            distribution = importlib.metadata.distribution(requirement.name)
            for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
                (folder / name).unlink(missing_ok=True)  # packages may share a folder, such as google
                (folder / name).symlink_to(distribution.locate_file(name))
    return folder


def run_with(packages, *arguments):
    """Run Python with the packages in a folder and no others."""
    environment = os.environ | {"PYTHONPATH": f"{packages}{os.pathsep}{ROOT / 'src'}"}
    command = [sys.executable, "-S", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def write_red_network(folder):
    """Write a fine-tuned network whose log-odds are (mean of red - 180) / 10, as `store_cnn` would."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["levels"], keepdims=0),
        helper.make_node("Sub", ["levels", "middle"], ["differences"]),
        helper.make_node("Div", ["differences", "scale"], ["outputs"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("middle", TensorProto.FLOAT, [3], [180, 0, 0]),
        helper.make_tensor("scale", TensorProto.FLOAT, [1], [10]),
    ]
    shapes = {"images": ["n", "height", "width", 3], "outputs": ["n", 3]}
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name, shape in shapes.items()]
    graph = helper.make_graph(nodes, "red", *ends, constants)
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    description = {"format": cnn.FORMAT, "engine": "onnx", "batch": 8, "shape": [96, 96], "channels": 2}
    description["symmetries"] = 8
    description["settings"] = asdict(cnn.CnnSettings(size=0))
    onnx.save(network, folder / cnn.ONNX_FILE)
    (folder / cnn.DESCRIPTION).write_text(json.dumps(description))


def predict_everything(bundle, images, slide, out):
    """Predict a folder, a slide and an array. It imports what it needs, because its source is run elsewhere."""
    from pathlib import Path

    import numpy as np
    from PIL import Image

    from histoblend import Predictor
    from histoblend.pipelines.__main__ import app

    paths = sorted(Path(images).iterdir())
    common = ["--bundle", bundle, "--workers", "1"]
    predict = ["predict", *common, "--in", images, "--out", f"{out}/predictions.csv", "--explain", paths[0].stem]
    app(predict, standalone_mode=False)
    app(["heatmap", *common, "--slide", slide, "--out", f"{out}/map"], standalone_mode=False)
    patches = np.stack([np.asarray(Image.open(path)) for path in paths])
    Predictor.load(bundle).predict(patches, slides=["one"] * len(paths)).to_csv(f"{out}/in-memory.csv")
