"`python -m maskbit` is the `maskbit` command."
from maskbit.cli import main

main()
