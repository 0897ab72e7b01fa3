// What was chosen at the page: theme, pause, pinned features. Theme and pins are kept.

type Theme = "system" | "dark" | "light";
const THEMES: readonly Theme[] = ["system", "dark", "light"];

function kept(name: string): string | null {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function keep(name: string, value: string): void {
  try {
    localStorage.setItem(name, value);
  } catch {
    // A browser that keeps nothing still shows everything.
  }
}

class Session {
  theme = $state<Theme>(THEMES.find((one) => one === kept("theme")) ?? "system");
  /** Drawing stands still; points are still taken in. */
  paused = $state(false);
  pins = $state.raw<ReadonlySet<string>>(new Set(JSON.parse(kept("pins") ?? "[]") as string[]));
  /** The run that was looked at last, which views of no run speak of. */
  run = $state("");
  /** This browser's clock, once a second: what ages are measured against. */
  now = $state(Date.now());

  /** What is on the screen now; canvases read their colours again when it changes. */
  shown = $state<"dark" | "light">("light");
  private readonly systemIsDark = window.matchMedia("(prefers-color-scheme: dark)");

  constructor() {
    window.setInterval(() => (this.now = Date.now()), 1000);
    this.systemIsDark.addEventListener("change", () => this.show());
    this.show();
  }

  nextTheme(): void {
    this.theme = THEMES[(THEMES.indexOf(this.theme) + 1) % THEMES.length] ?? "system";
    keep("theme", this.theme);
    this.show();
  }

  togglePin(address: string): void {
    const pins = new Set(this.pins);
    if (!pins.delete(address)) pins.add(address);
    this.pins = pins;
    keep("pins", JSON.stringify([...pins].slice(-200)));
  }

  private show(): void {
    this.shown = this.theme !== "system" ? this.theme : this.systemIsDark.matches ? "dark" : "light";
    document.documentElement.dataset.theme = this.shown;
  }
}

export const session = new Session();
