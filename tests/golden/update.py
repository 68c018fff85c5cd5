"""Write the expected reports anew: `make golden`. Read the difference before committing it."""

from costmodels.files import write_atomically
from tests.golden.reports import SCENARIOS, expected, made


def main() -> None:
    for scenario in SCENARIOS:
        file, text = expected(scenario), made(scenario)
        before = file.read_text() if file.exists() else ""
        write_atomically(file, text)
        print(f"{file.name}: {'as before' if text == before else 'changed'}")


if __name__ == "__main__":
    main()
