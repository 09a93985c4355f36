"""Print the requirements of pyproject.toml with the extras named, one line, for pip in the Makefile.

torch and torchvision are left out: the Makefile installs that pair itself, by version.
"""

import sys
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
wanted = list(project["dependencies"])
for extra in sys.argv[1:]:
    wanted += project["optional-dependencies"][extra]
names = dict.fromkeys(r for r in wanted if not r.startswith(("torch>", "torchvision")))
print(*names)
