// What the person at the page has chosen: theme, pause, pinned features. Theme and pins are kept.

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
  /** Who speaks, and the token that lets them; kept until the tab is closed. */
  person = $state(kept("person") ?? "");
  token = $state(sessionStorage.getItem("token") ?? "");
  /** This browser's clock, once a second: what ages are measured against. */
  now = $state(Date.now());

  constructor() {
    window.setInterval(() => (this.now = Date.now()), 1000);
    this.show();
  }

  nextTheme(): void {
    this.theme = THEMES[(THEMES.indexOf(this.theme) + 1) % THEMES.length] ?? "system";
    keep("theme", this.theme);
    this.show();
  }

  introduce(person: string, token: string): void {
    this.person = person;
    this.token = token;
    keep("person", person);
    sessionStorage.setItem("token", token);
  }

  togglePin(address: string): void {
    const pins = new Set(this.pins);
    if (!pins.delete(address)) pins.add(address);
    this.pins = pins;
    keep("pins", JSON.stringify([...pins].slice(-200)));
  }

  private show(): void {
    if (this.theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = this.theme;
  }
}

export const session = new Session();
