// Where the page is, kept in the address after #, so that every view can be linked to.

export type Route =
  | { view: "fleet" }
  | { view: "agent"; run: string; hookPoint: string; env: number }
  | { view: "feature"; run: string; hookPoint: string; feature: number }
  | { view: "map"; run: string; hookPoint: string }
  | { view: "claims"; run: string; hookPoint: string }
  | { view: "alerts" };

export function parse(hash: string): Route {
  const [path = "", search = ""] = hash.replace(/^#\/?/, "").split("?");
  const [view, run, hookPoint = "", feature] = path.split("/").map(decodeURIComponent);
  const query = new URLSearchParams(search);
  if (view === "alerts") return { view };
  if (!run) return { view: "fleet" };
  if (view === "agent") {
    const env = Number(query.get("env") ?? 0);
    return { view, run, hookPoint, env: Number.isInteger(env) && env >= 0 ? env : 0 };
  }
  if (view === "map" || view === "claims") return { view, run, hookPoint };
  const index = Number(feature);
  if (view === "feature" && Number.isInteger(index) && index >= 0) {
    return { view, run, hookPoint, feature: index };
  }
  return { view: "fleet" };
}

export function link(route: Route): string {
  if (route.view === "fleet") return "#/";
  if (route.view === "alerts") return "#/alerts";
  const parts = [route.view, route.run, route.hookPoint];
  if (route.view === "feature") parts.push(String(route.feature));
  const path = `#/${parts.map(encodeURIComponent).join("/")}`;
  return route.view === "agent" && route.env > 0 ? `${path}?env=${route.env}` : path;
}

class Place {
  route = $state.raw<Route>(parse(location.hash));

  constructor() {
    window.addEventListener("hashchange", () => (this.route = parse(location.hash)));
  }

  go(route: Route): void {
    location.hash = link(route);
  }
}

export const place = new Place();
