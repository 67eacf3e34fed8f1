import importlib.util
from pathlib import Path

from autoft.testing import ZooConformance

FILE = Path(__file__).parents[1] / "examples" / "custom_backbone" / "my_backbone.py"


class TestMyZoo(ZooConformance):
    def part(self):
        spec = importlib.util.spec_from_file_location("my_backbone", FILE)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        (zoo,) = module.autoft_zoos()
        return zoo
