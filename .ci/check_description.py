"""Checks that a wheel's description has no link into the repository: an index shows it alone."""

import re
import sys
import zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    description = wheel.read(metadata).decode()

# Code has brackets and parentheses that are no links.
prose = re.sub(r"```.*?```|`[^`\n]*`", "", description, flags=re.DOTALL)
links = re.findall(r"\]\((?!https?://|#)[^)]*\)", prose)
if links:
    sys.exit(f"The description has links into the repository: {links}")
