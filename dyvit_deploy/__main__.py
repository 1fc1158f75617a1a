"""`python -m dyvit_deploy`, which `torchrun -m dyvit_deploy` needs."""
from .cli.main import main

main(prog_name="dyvit")
