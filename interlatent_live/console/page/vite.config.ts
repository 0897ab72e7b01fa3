import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

export default defineConfig({
  plugins: [svelte()],
  // Beside `npm run dev`, a running console answers what the page asks for.
  server: { proxy: { "/api": { target: "http://127.0.0.1:28480", ws: true } } },
  // Everything is a file of its own: the page's policy allows neither inline code nor data: URLs.
  build: { outDir: "dist", assetsInlineLimit: 0, modulePreload: false, target: "es2022" },
});
