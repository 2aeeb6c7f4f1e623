check version python3 -m pip --version
export PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
mkdir -p src/greeter
echo 'def main(): print("hello")' > src/greeter/__init__.py
cat > setup.py <<'END'
from setuptools import setup
setup(name="greeter", version="1.0", packages=["greeter"], package_dir={"": "src"},
      entry_points={"console_scripts": ["greet=greeter:main"]})
END
check venv python3 -m venv --system-site-packages v
check wheel sh -c 'v/bin/pip wheel -q --no-build-isolation --no-deps -w wheels . && ls wheels'
check 'install a wheel' sh -c 'v/bin/pip install wheels/*.whl && v/bin/greet'
check list sh -c 'v/bin/pip show greeter | sed -n 1,2p'
check uninstall v/bin/pip uninstall -y greeter
check sdist sh -c 'python3 setup.py -q sdist 2> /dev/null; ls dist'
check 'install an sdist' sh -c 'v/bin/pip install --no-build-isolation dist/greeter-1.0.tar.gz 2>&1 | grep "^Success"; v/bin/greet'
check 'install what is edited' sh -c 'v/bin/pip install -q --no-build-isolation -e . && v/bin/greet'
check 'into the system' sh -c 'pip install -q --break-system-packages --no-deps wheels/*.whl && greet'
check check v/bin/pip check
